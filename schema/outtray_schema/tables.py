from sqlalchemy import MetaData
metadata = MetaData(schema="outtray")
